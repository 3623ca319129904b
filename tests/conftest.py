from hypothesis import settings

# How fast the machine is proves nothing.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
