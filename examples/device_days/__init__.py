"""The mean of each device by day, materialised as files arrive."""
