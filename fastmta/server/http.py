"""HTTP listeners: an aiohttp application on its endpoints."""

import socket

from aiohttp import web

from fastmta.config import Endpoint

_SHUTDOWN = 2.0  # seconds that running requests may still take


class HttpServer:
    """Serves one application, on as many endpoints as `listen` is called for."""

    def __init__(self, app: web.Application) -> None:
        self._sites: dict[Endpoint, web.BaseSite] = {}
        self._runner = web.AppRunner(
            app, handle_signals=False, access_log=None, shutdown_timeout=_SHUTDOWN
        )

    async def listen(self, endpoint: Endpoint, held: socket.socket | None = None) -> Endpoint:
        """Begin to answer, and say where: a port of 0 is chosen here. OSError if it is taken.

        `held` listens there already.
        """
        if self._runner.server is None:
            await self._runner.setup()
        site: web.BaseSite = web.TCPSite(self._runner, endpoint.host, endpoint.port)
        if held is not None:
            site = web.SockSite(self._runner, held)
        try:
            await site.start()
        except OSError:
            await site.stop()
            raise
        self._sites[endpoint] = site
        return Endpoint(*self._runner.addresses[-1][:2])

    @property
    def endpoints(self) -> set[Endpoint]:
        """What `listen` was called for."""
        return set(self._sites)

    async def unlisten(self, endpoint: Endpoint) -> None:
        """Take no more connections there; those that are open go on."""
        await self._sites.pop(endpoint).stop()

    async def close(self) -> None:
        await self._runner.cleanup()
