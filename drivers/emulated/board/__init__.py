"""An emulated board: `python -m drivers.emulated.board --help`.

Two kinds of process, as there are two kinds of thing on the bench. The *machine* (machine.py) is the surroundings:
port, wire, power switch, control socket. The *firmware* (firmware.py) is the MCU: its memory is a process that a
reset or a power cut ends, its flash and TPM are what the state directory keeps. Nothing of the station comes in.
"""
