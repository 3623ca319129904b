_Address = tuple[str, str, str]

def address_list(
    value: bytes, most: int = 10_000
) -> list[_Address | tuple[str, list[_Address]]]: ...
