"""Files exactly as they are published, stored by a declaration of the user's, without any preprocessing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from dagster import DagsterInstance

from ingest_project_tests.file_ingest.datasets.system import declare, opened, settings_of
from ingest_project_tests.services.kafka import Server

# Rows and line ends are those of the publication: quoted header, NA, four columns of local time.
PRSA = (
    '"No","year","month","day","hour","PM2.5","PM10","SO2","NO2","CO","O3","TEMP","PRES","DEWP","RAIN","wd","WSPM",'
    '"station"\n'
    '1,2013,3,1,0,4,4,4,7,300,77,-0.7,1023,-18.8,0,"NNW",4.4,"Aotizhongxin"\n'
    '2,2013,3,1,1,8,NA,4,7,300,77,-1.1,1023.2,-18.2,0,"N",4.7,"Aotizhongxin"\n'
    '3,2013,3,1,2,NA,NA,NA,NA,NA,NA,NA,NA,NA,NA,NA,NA,"Aotizhongxin"\n'
)
# Semicolons, decimal commas, points in times, -200 for missing, columns without names and rows without values.
AIR_QUALITY = (
    "Date;Time;CO(GT);PT08.S1(CO);NMHC(GT);C6H6(GT);PT08.S2(NMHC);NOx(GT);PT08.S3(NOx);NO2(GT);PT08.S4(NO2);"
    "PT08.S5(O3);T;RH;AH;;\r\n"
    "10/03/2004;18.00.00;2,6;1360;150;11,9;1046;166;1056;113;1692;1268;13,6;48,9;0,7578;;\r\n"
    "10/03/2004;20.00.00;-200;1402;88;9,0;939;131;1140;114;1555;1074;-200;-200;-200;;\r\n"
    ";;;;;;;;;;;;;;;;\r\n"
)


def _declare_beijing(folder: Path) -> None:
    beijing = declare(
        folder,
        "beijing",
        columns=[
            {"name": "station", "type": "text", "required": True},
            {"name": "observed_at", "type": "timestamp", "required": True},
            {"name": "pm2_5", "type": "number", "min": 0, "unit": "µg/m³"},
            {"name": "pm10", "type": "number", "min": 0, "unit": "µg/m³"},
            {"name": "temperature", "type": "number", "min": -50, "max": 60, "unit": "°C"},
            {"name": "wd", "type": "text", "pattern": "[NESW]{1,3}"},
        ],
        key={"columns": ["station", "observed_at"]},
        paths=["*/PRSA_Data_*.csv"],
        reader={
            "joined": {"observed_at": ["year", "month", "day", "hour"]},
            "columns": {"PM2.5": "pm2_5", "TEMP": "temperature"},
            "ignored": ["No", "SO2", "NO2", "CO", "O3", "PRES", "DEWP", "RAIN", "WSPM"],
            "timestamps": {"formats": ["%Y %m %d %H"], "zone": "UTC+08:00"},
        },
    )
    # A column called No, as people write it.
    beijing.write_text(beijing.read_text().replace("'No'", "No"))


def _declare_air_quality(folder: Path) -> None:
    declare(
        folder,
        "air_quality",
        columns=[
            {"name": "observed_at", "type": "timestamp", "required": True},
            {"name": "co", "type": "number", "min": 0, "unit": "mg/m³"},
            {"name": "temperature", "type": "number", "unit": "°C"},
            {"name": "absolute_humidity", "type": "number", "unit": "g/m³"},
        ],
        paths=["*/AirQualityUCI*.csv"],
        reader={
            "delimiter": ";",
            "joined": {"observed_at": ["Date", "Time"]},
            "columns": {"CO(GT)": "co", "T": "temperature", "AH": "absolute_humidity"},
            "timestamps": {"formats": ["%d/%m/%Y %H.%M.%S"], "zone": "Europe/Rome"},
            "numbers": {"decimal": ","},
            "nulls": ["", "-200"],
        },
    )


def test_beijing_prsa_and_uci_air_quality_are_stored_as_they_are_published(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    _declare_beijing(tmp_path)
    _declare_air_quality(tmp_path)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    system.send_files(system.write("PRSA_Data_Aotizhongxin_20130301-20170228.csv", PRSA))
    system.send_files(system.write("AirQualityUCI.csv", AIR_QUALITY))
    system.run_due()

    assert {record.event.file_name: record.reason for record in system.services.files.list()} == {
        "PRSA_Data_Aotizhongxin_20130301-20170228.csv": None,
        "AirQualityUCI.csv": None,
    }
    hours = [datetime(2013, 2, 28, hour, tzinfo=UTC) for hour in (16, 17, 18)]
    assert system.rows("SELECT station, observed_at, pm2_5, pm10, temperature, wd FROM beijing ORDER BY 2") == [
        ("Aotizhongxin", hours[0], 4.0, 4.0, -0.7, "NNW"),
        ("Aotizhongxin", hours[1], 8.0, None, -1.1, "N"),
        ("Aotizhongxin", hours[2], None, None, None, None),
    ]
    columns = "observed_at, co, temperature, absolute_humidity, rescued_data->>'RH'"
    assert system.rows(f"SELECT {columns} FROM air_quality ORDER BY 1") == [
        (datetime(2004, 3, 10, 17, tzinfo=UTC), 2.6, 13.6, 0.7578, "48,9"),
        (datetime(2004, 3, 10, 19, tzinfo=UTC), None, None, None, None),
    ]
    assert system.rows("SELECT count(*) FROM quarantined_rows") == [(0,)]
    system.close()
