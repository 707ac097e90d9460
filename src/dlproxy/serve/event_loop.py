"""Which event loop dlproxy runs on. Called by cli/serve.py and lab/demo.py."""


def loop_factory() -> type | None:
    """uvloop's loop; None, which is asyncio's own, where uvloop does not exist (Windows)."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: type = uvloop.Loop
    return factory
