"""The run as a whole: configuration, coordinator, weight sync, data store, tracking, progress, report, command line.

This room may import every other one; nothing may import it.
"""
