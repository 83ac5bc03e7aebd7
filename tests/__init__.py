"""Tests of pytest-modelbudget: a package, so that no other of this name (some libraries install theirs) is taken."""
