-- Run once, on an empty volume. The image itself makes the database `warehouse`.
CREATE DATABASE dagster;
