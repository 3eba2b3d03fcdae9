"""INPUT strings -> frozen work list of units; unit -> encoded images."""
