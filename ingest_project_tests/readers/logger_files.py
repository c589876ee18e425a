"""Small files in the styles of loggers and archives, with what a person reads in their first records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

# Time, device, sensor type and value, as a person reads them.
Reading = tuple[str, str, str, float]


class LoggerFile(NamedTuple):
    """A file, the number of its readings, some of them, and words that its questions must contain."""

    name: str
    content: bytes
    total: int
    readings: tuple[Reading, ...]
    asked: tuple[str, ...] = ()


def lines(count: int, start: str, step_minutes: int, line: Callable[[int, datetime], str], end: str = "\r\n") -> str:
    """Text with so many records."""
    first = datetime.fromisoformat(start).replace(tzinfo=UTC)
    return "".join(line(i, first + timedelta(minutes=step_minutes * i)) + end for i in range(count))


def comma(number: float) -> str:
    """The number with a decimal comma."""
    return f"{number:.1f}".replace(".", ",")


AIR_QUALITY = LoggerFile(
    "AirQualityUCI.csv",
    (
        "Date;Time;CO(GT);PT08.S1(CO);T;RH;;\r\n"
        + lines(
            60,
            "2004-03-10T18:00",
            60,
            lambda i, t: (
                f"{t:%d/%m/%Y};{t:%H}.00.00;{-200 if i % 7 == 3 else comma(2.6)};{1360 - i};"
                f"{comma(13.6 - i / 10)};{comma(48.9)};;"
            ),
        )
        + ";;;;;;;\r\n;;;;;;;\r\n"
    ).encode(),
    60 * 4 - 9,
    (
        ("2004-03-10T18:00:00Z", "AirQualityUCI", "co_gt", 2.6),
        ("2004-03-10T18:00:00Z", "AirQualityUCI", "temperature", 13.6),
        ("2004-03-11T00:00:00Z", "AirQualityUCI", "humidity", 48.9),
    ),
    ("zone", "unit", "device"),
)
BEIJING = LoggerFile(
    "PRSA_Data_Aotizhongxin_20130301-20170228.csv",
    (
        '"No","year","month","day","hour","PM2.5","SO2","TEMP","wd","WSPM","station"\n'
        + lines(
            50,
            "2013-03-01",
            60,
            lambda i, t: (
                f"{i + 1},{t.year},{t.month},{t.day},{t.hour},{'NA' if i == 9 else 4 + i % 5},4,"
                f'{i / 10 - 0.7:.1f},"NNW",4.4,"Aotizhongxin"'
            ),
            "\n",
        )
    ).encode(),
    50 * 4 - 1,
    (
        ("2013-03-01T00:00:00Z", "Aotizhongxin", "pm2_5", 4.0),
        ("2013-03-02T01:00:00Z", "Aotizhongxin", "temperature", 1.8),
        ("2013-03-01T23:00:00Z", "Aotizhongxin", "wind_speed", 4.4),
    ),
    ("zone", "unit"),
)
HOUSEHOLD = LoggerFile(
    "household_power_consumption.txt",
    (
        "Date;Time;Global_active_power;Voltage;Sub_metering_3\r\n"
        + lines(
            100,
            "2006-12-16T17:24",
            1,
            lambda i, t: f"{t.day}/{t.month}/{t.year};{t:%H:%M:%S};" + ("?;?;" if i == 50 else "4.216;234.840;17.000"),
        )
    ).encode(),
    99 * 3,
    (
        ("2006-12-16T17:24:00Z", "household_power_consumption", "global_active_power", 4.216),
        ("2006-12-16T17:24:00Z", "household_power_consumption", "voltage", 234.84),
    ),
    ("zone", "unit", "device"),
)
GERMAN_WEATHER = LoggerFile(
    "produkt_tu_stunde_20070101_20091231_00044.txt",
    (
        "STATIONS_ID;MESS_DATUM;QN_9;TT_TU;RF_TU;eor\r\n"
        + lines(
            60,
            "2007-01-01",
            60,
            lambda i, t: (
                f"         44;{t:%Y%m%d%H};    3;{-999 if i == 5 else 8.5 + i / 10:8.1f};{90 + i % 7:6.1f};eor"
            ),
        )
    ).encode(),
    60 * 2 - 1,
    (("2007-01-01T00:00:00Z", "44", "tt_tu", 8.5), ("2007-01-03T11:00:00Z", "44", "tt_tu", 14.4)),
    ("zone", "unit"),
)
CAMPBELL = LoggerFile(
    "CR1000_Table1.dat",
    (
        '"TOA5","CR1000-Alpha","CR1000","1234","CR1000.Std.22","CPU:alpha.CR1","30112","Table1"\r\n'
        '"TIMESTAMP","RECORD","BattV_Min","AirTC_Avg","RH"\r\n"TS","RN","Volts","Deg C","%"\r\n'
        '"","","Min","Avg","Smp"\r\n'
        + lines(
            50,
            "2026-01-15",
            10,
            lambda i, t: (
                f'"{t:%Y-%m-%d %H:%M:%S}",{i},12.6,' + ('"NAN"' if i == 7 else f"{i / 10 - 3.2:.2f}") + ",81.2"
            ),
        )
    ).encode(),
    50 * 3 - 1,
    (
        ("2026-01-15T00:00:00Z", "CR1000-Alpha", "temperature", -3.2),
        ("2026-01-15T08:10:00Z", "CR1000-Alpha", "humidity", 81.2),
    ),
    ("zone", "device"),
)
HOBO = LoggerFile(
    "Greenhouse4.csv",
    (
        '\ufeff"Plot Title: Greenhouse 4"\r\n"#","Date Time, GMT-05:00","Temp, °C (LGR S/N: 10254, SEN S/N: 10254)",'
        '"RH, % (LGR S/N: 10254, SEN S/N: 10254)","Host Connected (LGR S/N: 10254)"\r\n'
        + lines(40, "2026-01-15T09:00", 30, lambda i, t: f"{i + 1},{t:%m/%d/%y %I:%M:%S %p},{21.4 + i / 10:.3f},44.1,")
        + "41,01/16/26 06:00:00 AM,,,Logged\r\n"
    ).encode(),
    80,
    (
        ("2026-01-15T14:00:00Z", "Greenhouse 4", "temperature", 21.4),
        ("2026-01-15T18:30:00Z", "Greenhouse 4", "humidity", 44.1),
    ),
    ("device",),
)
COLD_ROOM = LoggerFile(
    "kuehlraum.csv",
    (
        "Logger;Zeit;Temperatur [°C];Feuchte [%];Status\r\n"
        + lines(40, "2026-01-15", 30, lambda i, t: f"K-{i % 2 + 1};{t:%d.%m.%Y %H:%M};{comma(4 + i / 10)};{44 + i};OK")
    ).encode("cp1252"),
    80,
    (("2026-01-15T00:00:00Z", "K-1", "temperature", 4.0), ("2026-01-15T00:30:00Z", "K-2", "humidity", 45.0)),
    ("zone",),
)
LONG = LoggerFile(
    "export.csv",
    (
        "Device ID;Parameter;Value;Unit;Measured at;Received at\n"
        + lines(
            40,
            "2026-01-15",
            30,
            lambda i, t: (
                f"d{i % 2};{'pressure;1.013,2;hPa' if i % 2 else 'co2;410,5;ppm'};{t:%Y-%m-%dT%H:%M:%SZ};"
                f"{t:%Y-%m-%dT%H:%M:%S.123Z}"
            ),
            "\n",
        )
    ).encode(),
    40,
    (("2026-01-15T00:00:00Z", "d0", "co2", 410.5), ("2026-01-15T00:30:00Z", "d1", "pressure", 1013.2)),
)
HUT = LoggerFile(
    "hut.txt",
    (
        "# station: Hut 7\n# date time temp rh\n"
        + lines(40, "2026-01-15", 30, lambda i, t: f"{t:%Y-%m-%d %H:%M:%S}  {4 + i / 10:6.2f} {44 + i / 5:7.1f}", "\n")
    ).encode(),
    80,
    (("2026-01-15T00:00:00Z", "Hut 7", "temperature", 4.0), ("2026-01-15T19:30:00Z", "Hut 7", "humidity", 51.8)),
    ("zone", "device"),
)
TWO_HEADERS = LoggerFile(
    "console.txt",
    (
        "Time\tTemperature\t\tHumidity\t\n\tin\tout\tin\tout\n"
        + lines(
            40, "2026-01-15", 30, lambda i, t: f"{t:%Y-%m-%dT%H:%M:%S+01:00}\t21.4\t{i / 10 - 2:.1f}\t44.5\t80", "\n"
        )
    ).encode(),
    160,
    (
        ("2026-01-14T23:00:00Z", "console", "temperature_in", 21.4),
        ("2026-01-14T23:00:00Z", "console", "temperature_out", -2.0),
        ("2026-01-14T23:00:00Z", "console", "humidity_out", 80.0),
    ),
    ("device",),
)
NO_HEADER = LoggerFile(
    "nodes.csv",
    lines(50, "2026-01-15T10:00", 10, lambda i, t: f"{int(t.timestamp())},node-{i % 3},{20.1 + i / 10:.1f}").encode(),
    50,
    (("2026-01-15T10:00:00Z", "node-0", "quantity_3", 20.1), ("2026-01-15T10:10:00Z", "node-1", "quantity_3", 20.2)),
    ("unit", "device"),
)
FIXED_WIDTH = LoggerFile(
    "stations.txt",
    (
        "STN     DATE       TIME  TEMP   RH\n"
        + lines(
            30,
            "2026-01-15",
            60,
            lambda i, t: (
                f"ab{i % 2:02}    {t:%Y-%m-%d %H:%M}{'' if i % 6 == 2 else f'{12.1 + i / 10:.1f}':>6}{40 + i / 2:6.1f}"
            ),
            "\n",
        )
    ).encode(),
    55,
    (("2026-01-15T00:00:00Z", "ab00", "temperature", 12.1), ("2026-01-15T02:00:00Z", "ab00", "humidity", 41.0)),
    ("zone",),
)
BUOY = LoggerFile(
    "buoy_41001.txt",
    (
        "YEAR MM DD hh WSPD   PRES  ATMP\n"
        + lines(
            40,
            "2026-01-15",
            60,
            lambda i, t: f"{t:%Y %m %d %H} {3.1 + i / 10:5.1f} {1013.2:6.1f} {999 if i == 4 else 12.1:5.1f}",
            "\n",
        )
    ).encode(),
    119,
    (("2026-01-15T00:00:00Z", "buoy_41001", "wind_speed", 3.1), ("2026-01-16T15:00:00Z", "buoy_41001", "atmp", 12.1)),
    ("zone", "unit", "device"),
)
FAHRENHEIT = LoggerFile(
    "barn.csv",
    (
        "Timestamp,Temp (F),Device\n"
        + lines(24, "2026-01-15", 60, lambda i, t: f"{t:%Y-%m-%dT%H:%M:%SZ},{50 + i}.0,a", "\n")
        + "\nTotal rows: 24\n"
    ).encode(),
    24,
    (("2026-01-15T00:00:00Z", "a", "temperature", 10.0),),
)
NETWORK = LoggerFile(
    "uplinks.jsonl",
    lines(
        20,
        "2026-01-15T10:00",
        1,
        lambda i, t: (
            f'{{"end_device_ids": {{"device_id": "eui-{i % 3}"}}, "received_at": "{t:%Y-%m-%dT%H:%M:%S.5Z}", '
            f'"uplink_message": {{"f_port": 1, "f_cnt": {i}, '
            f'"decoded_payload": {{"temperature": {21.4 + i / 10:.1f}}}}}}}'
        ),
        "\n",
    ).encode(),
    20,
    (("2026-01-15T10:01:00.500000Z", "eui-1", "temperature", 21.5),),
    ("unit",),
)
LOGGER_FILES = (
    *(AIR_QUALITY, BEIJING, HOUSEHOLD, GERMAN_WEATHER, CAMPBELL, HOBO, COLD_ROOM, LONG, HUT, TWO_HEADERS, NO_HEADER),
    *(FIXED_WIDTH, BUOY, FAHRENHEIT, NETWORK),
)
