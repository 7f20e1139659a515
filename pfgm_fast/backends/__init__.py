"""The backends, side by side. Each module has for every operator a function of the operator's name and arguments
(docs/architecture.md), and

    unavailable() -> str | None            why it cannot run on this machine, or None
    refuses(op, x, charges) -> str | None  why it cannot serve this call, or None (tensors of the call; charges may be None)
"""
