"""The numeric core: schedules, parameterizations, losses, guidance, thresholding, augmentation, contract and loop.

Only torch is needed, except by :mod:`imagen.diffusion.sampling` and its :mod:`imagen.diffusion.unipc`, which rent their
step rules from diffusers and are therefore imported by their own names. The symbols of the paper keep their names:
``x0`` is the clean picture in [-1, 1],
``eps`` the noise, ``z = alpha x0 + sigma eps`` the noisy picture, ``log_snr = log(alpha^2 / sigma^2)``, ``t`` in
[0, 1].
"""
