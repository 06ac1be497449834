"""How stages, slides and config become jobs: what each rule takes, what it is keyed by, how a script runs it."""
