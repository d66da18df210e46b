mod config_problems;
