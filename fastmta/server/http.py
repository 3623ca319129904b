"""HTTP listeners: an aiohttp application on one endpoint."""

from aiohttp import web

from fastmta.config import Endpoint

_SHUTDOWN = 2.0  # seconds that running requests may still take


async def listen(app: web.Application, endpoint: Endpoint) -> web.AppRunner:
    """Serve `app` until `cleanup` of what is returned; OSError where it cannot be bound."""
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=_SHUTDOWN)
    await runner.setup()
    try:
        await web.TCPSite(runner, endpoint.host, endpoint.port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
