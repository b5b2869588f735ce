"""The link to boards that speak SMP (MCUboot, Zephyr, Mynewt, NuttX) in its serial framing, over any Channel.

Nothing about stations, recipes or TPM structures comes in: TPM commands and certificates pass through as bytes.
"""
