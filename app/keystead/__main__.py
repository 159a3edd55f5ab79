"""Entry point of the `keystead` command."""

import signal


def main() -> None:
    """Run the command."""
    default_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default_handler:
        # Importing takes a moment. Ctrl-C during it should exit quietly, without a KeyboardInterrupt traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from keystead.commands import cli

    if default_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
