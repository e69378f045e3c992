"""The optimizer over arrays: groups, options, states, and one class for each rule."""
