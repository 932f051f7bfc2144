"""Numbers from features: streaming statistics, FID, IS, precision, recall, KID, their differences,
and reference files. numpy, and scipy for Student's t.
"""
