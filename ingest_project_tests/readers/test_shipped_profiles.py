"""The shipped profiles, each on a small file of the published format."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ingest_project.file_ingest.sensor_readings import SensorTypes, ValidationRules, validate
from ingest_project.readers.casting import cast
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import SHIPPED_PROFILES, load_profiles, read_profile
from ingest_project.readers.reading import read_chunks

PROFILES = load_profiles()
RULES = ValidationRules(SensorTypes.load(), datetime(2026, 6, 1, tzinfo=UTC), earliest=datetime(1900, 1, 1, tzinfo=UTC))


class Sample(NamedTuple):
    """A file of one format.

    Args:
        name: of the file.
        text: its content.
        expected: line number, moment, device, sensor type, value and unit of its readings.
        rejected: line number and reason of its other rows.
    """

    name: str
    text: str
    expected: list[tuple[Any, ...]]
    rejected: Sequence[tuple[int, str]] = ()


def at(year: int, month: int, day: int, *clock: int, hours: float = 0) -> datetime:
    """A moment in UTC, given the clock of a zone that is so many hours east."""
    parts = dict(zip(("hour", "minute", "second", "microsecond"), clock, strict=False))
    return datetime(year, month, day, tzinfo=UTC) + timedelta(
        hours=parts.get("hour", 0) - hours,
        minutes=parts.get("minute", 0),
        seconds=parts.get("second", 0),
        microseconds=parts.get("microsecond", 0),
    )


SAMPLES = {
    "campbell_toa5": Sample(
        "CR1000_Table1.dat",
        '"TOA5","North Ridge","CR1000","12345","CR1000.Std.25","CPU:met.CR1","1234","Table1"\r\n'
        '"TIMESTAMP","RECORD","BattV_Min","AirTC_Avg","RH","WS_ms_Avg","SoilVWC"\r\n'
        '"TS","RN","Volts","Deg C","%","meters/second","m^3/m^3"\r\n'
        '"","","Min","Avg","Smp","Avg","Smp"\r\n'
        '"2024-01-15 10:30:00",0,12.61,-3.25,"NAN",1.5,0.2\r\n'
        '"2024-01-15 10:40:00.5",1,12.6,"NAN",88.5,7999,0.2\r\n',
        [
            (5, at(2024, 1, 15, 10, 30), "North Ridge", "battery_voltage", 12.61, "V"),
            (5, at(2024, 1, 15, 10, 30), "North Ridge", "temperature", -3.25, "°C"),
            (5, at(2024, 1, 15, 10, 30), "North Ridge", "wind_speed", 1.5, "m/s"),
            (6, at(2024, 1, 15, 10, 40, 0, 500_000), "North Ridge", "battery_voltage", 12.6, "V"),
            (6, at(2024, 1, 15, 10, 40, 0, 500_000), "North Ridge", "humidity", 88.5, "%"),
        ],
    ),
    "dwd_hourly": Sample(
        "produkt_tu_stunde_20240101_20240131_00044.txt",
        "STATIONS_ID;MESS_DATUM;QN_9;TT_TU;RF_TU;eor\n"
        "         44;2024010100;    3;   6.1;  92.0;eor\n"
        "         44;2024010123;    3;-999;  91.0;eor\n",
        [
            (2, at(2024, 1, 1), "44", "temperature", 6.1, "°C"),
            (2, at(2024, 1, 1), "44", "humidity", 92.0, "%"),
            (3, at(2024, 1, 1, 23), "44", "humidity", 91.0, "%"),
        ],
    ),
    "dwd_10_minutes": Sample(
        "produkt_zehn_now_tu_20240101_20240101_00044.txt",
        "STATIONS_ID;MESS_DATUM;  QN;PP_10;TT_10;TM5_10;RF_10;TD_10;eor\n"
        "         44;202401010010;    2;   -999;   6.2;   5.9;  92.1;   5.0;eor\n",
        [
            (2, at(2024, 1, 1, 0, 10), "44", "temperature", 6.2, "°C"),
            (2, at(2024, 1, 1, 0, 10), "44", "ground_temperature", 5.9, "°C"),
            (2, at(2024, 1, 1, 0, 10), "44", "humidity", 92.1, "%"),
            (2, at(2024, 1, 1, 0, 10), "44", "dew_point", 5.0, "°C"),
        ],
    ),
    "noaa_isd": Sample(
        "72503014732.csv",
        '"STATION","DATE","SOURCE","LATITUDE","LONGITUDE","ELEVATION","NAME","REPORT_TYPE","CALL_SIGN","QUALITY_CONTROL",'
        '"WND","CIG","VIS","TMP","DEW","SLP","AA1"\n'
        '"72503014732","2024-01-01T00:51:00","7","40.77","-73.88","3.3","LA GUARDIA, NY US","FM-15","KLGA ","V030",'
        '"180,5,N,0031,5","22000,5,9,N","016093,5,N,5","+0061,5","-0011,5","10132,5","01,0000,9,5"\n'
        '"72503014732","2024-01-01T01:51:00","7","40.77","-73.88","3.3","LA GUARDIA, NY US","FM-15","KLGA ","V030",'
        '"999,9,C,0000,5","99999,9,9,N","999999,9,N,9","+9999,9","+0500,3","99999,9",""\n',
        [
            (2, at(2024, 1, 1, 0, 51), "72503014732", "temperature", 6.1, "°C"),
            (2, at(2024, 1, 1, 0, 51), "72503014732", "dew_point", -1.1, "°C"),
            (2, at(2024, 1, 1, 0, 51), "72503014732", "sea_level_pressure", 1013.2, "hPa"),
            (2, at(2024, 1, 1, 0, 51), "72503014732", "visibility", 16093.0, "m"),
            (2, at(2024, 1, 1, 0, 51), "72503014732", "wind_direction", 180.0, "°"),
            (2, at(2024, 1, 1, 0, 51), "72503014732", "wind_speed", 3.1, "m/s"),
            (3, at(2024, 1, 1, 1, 51), "72503014732", "wind_speed", 0.0, "m/s"),
        ],
        [(3, "value_not_matched")],
    ),
    "ghcn_daily": Sample(
        "2024.csv",
        "USW00014732,20240101,TMAX,61,,,W,2400\n"
        "USW00014732,20240101,PRCP,3,T,,W,2400\n"
        "USW00014732,20240101,SNWD,25,,,W,\n"
        "USW00014732,20240101,TMIN,999,,X,W,2400\n"
        "USW00014732,20240101,WT01,1,,,W,\n",
        [
            (1, at(2024, 1, 1), "USW00014732", "temperature_max", 6.1, "°C"),
            (2, at(2024, 1, 1), "USW00014732", "precipitation", 0.3, "mm"),
            (3, at(2024, 1, 1), "USW00014732", "snow_depth", 25.0, "mm"),
        ],
        [(5, "sensor_type_not_mapped")],
    ),
    "ghcn_daily_station": Sample(
        "USW00014732.csv",
        '"STATION","DATE","LATITUDE","LONGITUDE","ELEVATION","NAME","PRCP","PRCP_ATTRIBUTES","TMAX","TMAX_ATTRIBUTES"\n'
        '"USW00014732","2024-01-01","40.77","-73.88","3.0","LA GUARDIA, NY US","    3","T,,W,2400","   61",",,W"\n',
        [
            (2, at(2024, 1, 1), "USW00014732", "temperature_max", 6.1, "°C"),
            (2, at(2024, 1, 1), "USW00014732", "precipitation", 0.3, "mm"),
        ],
    ),
    "meteostat_hourly": Sample(
        "10637.csv",
        "2024-01-01,0,6.1,4.2,88,0.0,,210,18.0,36.0,1003.1,,3\n2024-01-01,1,,,,,,,,,,,\n",
        [
            (1, at(2024, 1, 1), "10637", "temperature", 6.1, "°C"),
            (1, at(2024, 1, 1), "10637", "dew_point", 4.2, "°C"),
            (1, at(2024, 1, 1), "10637", "humidity", 88.0, "%"),
            (1, at(2024, 1, 1), "10637", "precipitation", 0.0, "mm"),
            (1, at(2024, 1, 1), "10637", "wind_direction", 210.0, "°"),
            (1, at(2024, 1, 1), "10637", "wind_speed", 5.0, "m/s"),
            (1, at(2024, 1, 1), "10637", "wind_gust", 10.0, "m/s"),
            (1, at(2024, 1, 1), "10637", "sea_level_pressure", 1003.1, "hPa"),
            (1, at(2024, 1, 1), "10637", "weather_code", 3.0, None),
        ],
    ),
    "davis_weatherlink": Sample(
        "garden.txt",
        "\t\tTemp\tHi\tLow\tOut\tDew\tWind\tWind\t\t\n"
        "Date\tTime\tOut\tTemp\tTemp\tHum\tPt.\tSpeed\tDir\tBar\tRain\n"
        "1/15/24\t12:00a\t50.0\t50.2\t49.8\t93\t48.2\t10\tNW\t29.92\t0.10\n"
        "1/15/24\t1:30p\t---\t---\t---\t---\t---\t---\t---\t---\t0.00\n",
        [
            (3, at(2024, 1, 15), "garden", "temperature", 10.0, "°C"),
            (3, at(2024, 1, 15), "garden", "humidity", 93.0, "%"),
            (3, at(2024, 1, 15), "garden", "dew_point", 9.0, "°C"),
            (3, at(2024, 1, 15), "garden", "wind_speed", 4.4704, "m/s"),
            (3, at(2024, 1, 15), "garden", "sea_level_pressure", 1013.207481, "hPa"),
            (3, at(2024, 1, 15), "garden", "precipitation", 2.54, "mm"),
            (4, at(2024, 1, 15, 13, 30), "garden", "precipitation", 0.0, "mm"),
        ],
    ),
    "hobo": Sample(
        "10234567.csv",
        '\ufeff"Plot Title: Pond 3"\n'
        '"#","Date Time, GMT-05:00","Temp, °F (LGR S/N: 10234567, SEN S/N: 10234567)","Intensity, Lux (LGR S/N: 1)",'
        '"Coupler Detached (LGR S/N: 10234567)","End Of File (LGR S/N: 10234567)"\n'
        "1,01/15/24 10:00:00 AM,50.0,1.0,,\n"
        "2,01/15/24 10:00:05 AM,,,Logged,\n"
        "3,01/15/24 12:30:00 PM,68.0,2.5,,\n"
        "4,01/15/24 12:31:00 PM,,,,Logged\n",
        [
            (3, at(2024, 1, 15, 15), "Pond 3", "temperature", 10.0, "°C"),
            (3, at(2024, 1, 15, 15), "Pond 3", "light", 1.0, "lx"),
            (5, at(2024, 1, 15, 17, 30), "Pond 3", "temperature", 20.0, "°C"),
            (5, at(2024, 1, 15, 17, 30), "Pond 3", "light", 2.5, "lx"),
        ],
    ),
    "uci_air_quality": Sample(
        "AirQualityUCI.csv",
        "Date;Time;CO(GT);PT08.S1(CO);NMHC(GT);C6H6(GT);PT08.S2(NMHC);NOx(GT);PT08.S3(NOx);NO2(GT);PT08.S4(NO2);PT08.S5(O3);"
        "T;RH;AH;;\n"
        "10/03/2004;18.00.00;2,6;1360;-200;11,9;1046;-200;1056;113;1692;1268;13,6;48,9;0,7578;;\n"
        ";;;;;;;;;;;;;;;;\n",
        [
            (2, at(2004, 3, 10, 18), "AirQualityUCI", sensor_type, value, unit)
            for sensor_type, value, unit in (
                ("co", 2.6, "mg/m³"),
                ("pt08_s1_co", 1360.0, None),
                ("benzene", 11.9, "µg/m³"),
                ("pt08_s2_nmhc", 1046.0, None),
                ("pt08_s3_nox", 1056.0, None),
                ("no2", 113.0, "µg/m³"),
                ("pt08_s4_no2", 1692.0, None),
                ("pt08_s5_o3", 1268.0, None),
                ("temperature", 13.6, "°C"),
                ("humidity", 48.9, "%"),
                ("absolute_humidity", 0.7578, "g/m³"),
            )
        ],
    ),
    "uci_household_power": Sample(
        "household_power_consumption.txt",
        "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;Sub_metering_1;Sub_metering_2;"
        "Sub_metering_3\n"
        "16/12/2006;17:24:00;4.216;0.418;234.840;18.400;0.000;1.000;17.000\n"
        "28/4/2007;00:21:00;?;?;?;?;?;?;\n",
        [
            (2, at(2006, 12, 16, 17, 24), "household_power_consumption", sensor_type, value, unit)
            for sensor_type, value, unit in (
                ("active_power", 4.216, "kW"),
                ("reactive_power", 0.418, "kvar"),
                ("voltage", 234.84, "V"),
                ("current", 18.4, "A"),
                ("energy_kitchen", 0.0, "Wh"),
                ("energy_laundry", 1.0, "Wh"),
                ("energy_heating", 17.0, "Wh"),
            )
        ],
    ),
    "beijing_prsa": Sample(
        "PRSA_Data_Aotizhongxin_20130301-20170228.csv",
        '"No","year","month","day","hour","PM2.5","PM10","SO2","NO2","CO","O3","TEMP","PRES","DEWP","RAIN","wd","WSPM","station"\n'
        '1,2013,3,1,0,4,NA,4,7,300,77,-0.7,1023,-18.8,0,"NNW",4.4,"Aotizhongxin"\n'
        '2,2013,3,1,1,NA,NA,NA,NA,NA,NA,NA,NA,NA,NA,"cv",NA,"Aotizhongxin"\n',
        [
            (2, at(2013, 3, 1, hours=8), "Aotizhongxin", sensor_type, value, unit)
            for sensor_type, value, unit in (
                ("pm2_5", 4.0, "µg/m³"),
                ("so2", 4.0, "µg/m³"),
                ("no2", 7.0, "µg/m³"),
                ("co", 0.3, "mg/m³"),
                ("o3", 77.0, "µg/m³"),
                ("temperature", -0.7, "°C"),
                ("pressure", 1023.0, "hPa"),
                ("dew_point", -18.8, "°C"),
                ("precipitation", 0.0, "mm"),
                ("wind_direction", 337.5, "°"),
                ("wind_speed", 4.4, "m/s"),
            )
        ],
        [(3, "value_not_mapped")],
    ),
    "sensor_community": Sample(
        "2024-01-15_bme280_sensor_141.csv",
        "sensor_id;sensor_type;location;lat;lon;timestamp;pressure;altitude;pressure_sealevel;temperature;humidity\n"
        "141;BME280;65;48.698;9.204;2024-01-15T00:01:18;96612.93;;;3.26;85.75\n",
        [
            (2, at(2024, 1, 15, 0, 1, 18), "141", "temperature", 3.26, "°C"),
            (2, at(2024, 1, 15, 0, 1, 18), "141", "humidity", 85.75, "%"),
            (2, at(2024, 1, 15, 0, 1, 18), "141", "pressure", 966.1293, "hPa"),
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_published_file_becomes_the_readings_that_it_means(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    path = tmp_path / sample.name
    path.write_text(sample.text, encoding="utf-8", newline="")
    (chunk,) = read_chunks(path, "csv", PROFILES[name], ReadLimits())
    checked = validate(cast(chunk.rows, PROFILES[name]), RULES)
    assert checked.rejected.rows() == []
    found = checked.accepted.drop("rescued_data").rows()
    assert [row[:4] + row[5:] for row in found] == [row[:4] + row[5:] for row in sample.expected]
    assert [row[4] for row in found] == pytest.approx([row[4] for row in sample.expected], rel=1e-9)
    assert list(zip(chunk.malformed["line_number"], chunk.malformed["reason"], strict=True)) == [*sample.rejected]
    assert chunk.unknown_columns == {"campbell_toa5": ("SoilVWC",), "davis_weatherlink": DAVIS_UNKNOWN}.get(name, ())


DAVIS_UNKNOWN = ("Hi Temp", "Low Temp", "Wind Dir")


def test_every_shipped_profile_has_the_name_of_its_file_and_a_description() -> None:
    for path in SHIPPED_PROFILES.glob("*.yaml"):
        profile = read_profile(path)
        assert profile.name == path.stem
        assert profile.description
        assert PROFILES[profile.name] == profile


def test_the_units_of_shipped_profiles_are_those_of_their_sensor_types() -> None:
    known = SensorTypes.load().types
    for profile in PROFILES.values():
        for quantity in (*profile.quantities.values(), *profile.sensor_types.values()):
            units = known[quantity.sensor_type].units if quantity.sensor_type in known else ()
            assert not units or quantity.unit in units, (profile.name, quantity)


def test_shipped_profiles_need_no_library_of_units() -> None:
    rules = [rule for p in PROFILES.values() for rule in (*p.cells.values(), *p.quantities.values())]
    assert not [rule for rule in rules if rule.to]


CHIRPSTACK = (
    '{"time": "2024-01-15T10:30:45.123456789+00:00", "deviceInfo": {"deviceName": "hall 3",'
    ' "devEui": "0101010101010101", "tags": {}}, "devAddr": "00189440", "fCnt": 4, "fPort": 1, "data": "AQ==",'
    ' "object": {"temperature": 21.5, "humidity": 48, "door": "open"}, "rxInfo": [{"rssi": -36}]}\n'
)
TTN = (
    '{"end_device_ids": {"device_id": "hall-3", "application_ids": {"application_id": "app"}},'
    ' "received_at": "2024-01-15T10:30:45.123456789Z", "uplink_message": {"f_port": 2, "decoded_payload":'
    ' {"temperature": 21.5, "humidity": 48}, "rx_metadata": [{"rssi": -36}]}}\n'
    '{"end_device_ids": {"device_id": "hall-3"}, "received_at": "2024-01-15T10:31:00Z", "join_accept": {}}\n'
)


@pytest.mark.parametrize(
    ("name", "text", "device"), [("chirpstack", CHIRPSTACK, "0101010101010101"), ("ttn", TTN, "hall-3")]
)
def test_events_of_lorawan_servers_become_readings(tmp_path: Path, name: str, text: str, device: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(text, encoding="utf-8")
    (chunk,) = read_chunks(path, "jsonl", PROFILES[name], ReadLimits())
    checked = validate(cast(chunk.rows, PROFILES[name]), RULES)
    moment = datetime(2024, 1, 15, 10, 30, 45, 123456, tzinfo=UTC)
    assert checked.accepted.drop("rescued_data").rows() == [
        (1, moment, device, "temperature", 21.5, "°C"),
        (1, moment, device, "humidity", 48.0, "%"),
    ]
    assert (checked.rejected.height, chunk.malformed.height) == (0, 0)
