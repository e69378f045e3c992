"""From a rule's Python function to programs and texts: parse, lower, then one emitter a target. Read tree, parse, lower."""
