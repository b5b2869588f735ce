"""One room per kind of hardware or outside system, each behind an entry point of group `hallmark.drivers`.

A driver imports `hal` and its own room, never `station` and never another driver's room.
"""
