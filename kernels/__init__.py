"""Hot loops, one package an operation. Nothing here imports from the rest of ahlm."""
