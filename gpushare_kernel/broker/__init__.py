"""The part that runs: an asyncio daemon that carries out the core's instructions."""
