"""Bench equipment: boards and services that behave like the real ones, as processes of their own.

Good enough to develop a recipe without hardware, and nothing more: no code of the station or of a driver depends on it.
It may import codecs of drivers, never their input and output, so that both ends of a link are not the same code.
"""
