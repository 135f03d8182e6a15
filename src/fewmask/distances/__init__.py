"""How far apart image sets are, in the features of one or several encoders."""
