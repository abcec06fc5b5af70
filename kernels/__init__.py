"""Hot loops, one package an operation. Nothing here imports the rest of ahlm."""
