"""The commands: what ``mlp-xp COMMAND`` runs."""
