"""The page of one task: reading.py reads what it shows, timeline.py arranges it in time, words.py explains it."""
