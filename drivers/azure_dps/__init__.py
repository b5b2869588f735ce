"""The enrollment sink for Azure IoT Hub Device Provisioning Service, service API 2021-10-01.

Requests out, receipts and errors in. Pacing and retries are the uploader's; nothing of the station comes in here.
"""
