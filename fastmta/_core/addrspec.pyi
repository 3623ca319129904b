VALID: int
RFC5321: int
CFWS: int
DEPRECATED: int
RFC5322: int
INVALID: int

def classify(address: bytes, utf8: bool = False) -> int: ...
