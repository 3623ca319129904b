class Load:
    started: float
    ended: float
    refused: int
    disconnects: int

    def __init__(
        self,
        clients: int,
        messages: int,
        rate: float,
        domains: int,
        recipients: int,
        envelope: list[bytes],
        head: list[bytes],
        body: bytes,
    ) -> None: ...
    def greet(self, descriptor: int, deadline: float) -> None: ...
    def run(self) -> None: ...
    def acknowledged(self) -> list[int]: ...
    def latencies(self) -> list[float]: ...
