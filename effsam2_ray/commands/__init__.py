"""The subcommands of `effsam2`, one module each: `add_parser` describes it, and it raises for a user's mistakes."""
