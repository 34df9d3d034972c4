"""Maxwell on virtual time: its own flows, scheduler, ledger and health against simulated servers.

Run: python -m benchmarks.scheduling S3 --seeds 1,2,3
"""
