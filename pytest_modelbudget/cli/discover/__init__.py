"""What a project can build, in three rooms: what is seen in its files, what is proposed, and what ran.

`source` reads files and runs nothing; `proposals` and `trial` work in a process of their own, where modules are
imported and models built. `progress` says what is tried meanwhile, and `manifest` writes down what came of it.
"""
