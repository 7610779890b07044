"""How near an SAE's directions and codes are to those of an orthogonal basis."""
