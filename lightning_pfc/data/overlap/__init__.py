"""What two data sets have in common: identities and pictures, by embedding and by pixels; and joining them."""
