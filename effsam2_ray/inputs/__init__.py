"""INPUT strings -> frozen work list of units (`listing`); unit -> encoded images (`reader`)."""
