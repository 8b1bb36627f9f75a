"""Simulated measurements by physical law, one file a law, for experiments whose real data cannot be handed on.

``seismic`` (prestack gathers), ``ocean_colour`` (remote-sensing reflectance), ``ozone`` on ``two_stream`` (ultraviolet
radiance), ``ground_radar`` and ``mines`` (B-scans, and what is buried), ``acoustics`` and ``ships`` (shallow-water
multipath, and who is heard), ``weather`` and ``crop_growth`` (growth and yield), ``warm_rain`` (a moist wind over
hills), ``cloud_base`` (what sensors see of clouds), ``topography`` (heights from radar and from laser). Each gives the
law and samples that are reproducible by seed. Angles are in degrees; ``limits`` refuses what cannot be.
"""
