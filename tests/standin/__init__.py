"""Stand-ins for the servers that no test machine has: SQL Server's wire protocol, Oracle's driver.

They know what the documentation of sp_getapplock and DBMS_LOCK says, and nothing else. A test that
passes on them shows that our statements, binds and reactions fit the documentation, and the drivers;
it shows nothing about the real servers.
"""
