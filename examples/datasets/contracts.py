"""The contract of the weather dataset, which `defs/weather/defs.yaml` names as its `model`.

A pandera model states what YAML columns cannot: rules over more than one column. Each failed rule is a reason on its
row: `temperature_out_of_range` for a rule of a column, the method's name for a rule over several.
"""

from datetime import date
from typing import Annotated

import pandera.polars as pa
import polars as pl


class Observation(pa.DataFrameModel):
    """One observation of one weather station."""

    station: str = pa.Field(str_matches=r"^[A-Z]{3}$", description="Code of the station.")
    observed_at: Annotated[pl.Datetime, "us", "UTC"] = pa.Field(description="End of the hour.")
    day: date = pa.Field(description="Local day; each has a folder of the Delta table.")
    temperature: float = pa.Field(ge=-60, le=60, nullable=True, metadata={"unit": "°C"})
    dew_point: float = pa.Field(ge=-80, le=40, nullable=True, metadata={"unit": "°C"})
    humidity: float = pa.Field(ge=0, le=100, nullable=True, metadata={"unit": "%"})
    wind_speed: float = pa.Field(ge=0, le=120, nullable=True, metadata={"unit": "m/s"})
    rain: float = pa.Field(ge=0, le=500, nullable=True, metadata={"unit": "mm"})

    @pa.dataframe_check
    @classmethod
    def dew_point_not_above_temperature(cls, data: pa.PolarsData) -> pl.LazyFrame:
        """Reject a dew point above the temperature: the columns are swapped, or a sensor is broken."""
        return data.lazyframe.select(pl.col("dew_point") <= pl.col("temperature") + 0.1)
