# Runs in every IPython of this environment, in the user's own namespace: it must bind no name.
# (A docstring would bind __doc__, an import or `except ... as` a name.) It does nothing unless
# gpushare started this kernel.
if __import__("os").environ.get("GPUSHARE_TOKEN"):
    try:
        __import__("gpushare_magics").autoload()
    except Exception:  # noqa: BLE001 - a kernel must start whatever we got wrong
        __import__("sys").stderr.write(
            "gpushare: this kernel is shared, but without %%gpulane: "
            f"{__import__('sys').exc_info()[1]}\n"
        )
