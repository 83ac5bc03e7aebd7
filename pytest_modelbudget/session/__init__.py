"""What the plugin and the command share of a run: its models, the base they are held against, its end, its reports."""
