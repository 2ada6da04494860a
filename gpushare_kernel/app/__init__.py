"""The command line `jupyter gpushare`, and the launcher for clients that know no provisioners."""
