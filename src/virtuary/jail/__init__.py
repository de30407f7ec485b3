"""The jail: the one way in which programs are started that handle what strangers wrote."""
