"""The demo task: real handwritten digits on procedural clutter, and its run."""
