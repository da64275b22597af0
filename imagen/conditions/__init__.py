"""What a picture is made under beside its noise: so far the text, dropped or null, padded and stacked."""
