"""Hot loops, one package an operation. Nothing here needs the rest of ahlm."""
