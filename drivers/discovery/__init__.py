"""Sees boards come and go: driver "udev" by hot-plug events, driver "port-polling" where there is no udev.

Neither opens a device, sends it anything, or decides what a board is for: they say what is at which place, and no more.
"""
