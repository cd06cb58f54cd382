-- One server, two databases: MLflow's runs and Optuna's studies.
CREATE DATABASE runs;
CREATE DATABASE studies;
