"""An emulated Azure IoT Hub Device Provisioning Service: `python -m drivers.emulated.dps`.

Service API and device API 2021-10-01 over real HTTP(S), with the limits, errors, throttling and absences of the
real one. It shares no code with the sink that is tested against it.
"""
