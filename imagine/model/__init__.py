"""The network and what it needs: codec, text, decoder, cache, folder."""
